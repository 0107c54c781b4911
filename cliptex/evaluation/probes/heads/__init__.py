"""Networks and solvers of the heads: one module per task, and one per network or solver that they share."""
