"""What our predictors are measured against."""
