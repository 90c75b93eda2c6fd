"""What is studied: the command line, sweeps, studies, the report, the reproduction of both papers."""
