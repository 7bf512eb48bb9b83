"""Progress, metrics, MLflow."""
