"""`b2s doctor`: look at everything a backup needs, and say how to cure what is wrong."""
