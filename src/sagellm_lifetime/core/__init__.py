"""What everything else stands on: the contract, the distribution, histories, tracking."""
