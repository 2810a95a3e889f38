"""Pure decisions on frozen data: no files, network, clock, environment, processes or logging."""
