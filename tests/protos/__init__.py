"""What holds of the protos, of the code that is made from them, and of the core's table of them."""
