"""How good a predictor is: protocols, metrics, rivals, reports and workload profiles."""
