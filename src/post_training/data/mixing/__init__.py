"""Which rows, in which order, packed how: the parts of the stage `mix`."""
