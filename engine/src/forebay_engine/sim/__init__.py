"""A simulated SGLang 0.5.23 server: its HTTP surface, a queue model, and faults on request."""
