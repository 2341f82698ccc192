"""Evaluation of predictors: protocol, metrics, rivals, report."""
