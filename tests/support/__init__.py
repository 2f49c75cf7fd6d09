"""What the whole-gateway tests share: real processes, a scripted engine, a client of bytes."""
