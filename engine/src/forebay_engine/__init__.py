"""The engine side of Forebay. It runs beside the model and never imports the gateway."""

__version__ = "0.1.0"
