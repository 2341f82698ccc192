"""What predictors learn with."""
