"""A simulation of engines behind a gateway, to compare rules of scaling on the same arrivals."""
