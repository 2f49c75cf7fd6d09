"""How many engines a model wants: signals in, a number out, and who is told of it.

`signals` says what is known of a model, `rules` turn that into a number of replicas, `limits` bound
it (least, most, money, nothing when idle), and `loop` asks and tells: Prometheus (`exporter`), KEDA
(`keda`) and the platform (`drivers`). `simulate` plays arrivals against a model of engines and
compares rules.
"""
