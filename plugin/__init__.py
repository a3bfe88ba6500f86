"""Control plane: MLflow's doors, the desired state, and the processes that make it so."""
