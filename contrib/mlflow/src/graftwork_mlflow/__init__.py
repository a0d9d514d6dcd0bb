"""MLflow follows graftwork runs. Importing this imports neither torch nor MLflow."""
