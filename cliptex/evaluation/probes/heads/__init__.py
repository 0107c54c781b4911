"""Networks and solvers of the heads, a module per task and one for each network that several use."""
