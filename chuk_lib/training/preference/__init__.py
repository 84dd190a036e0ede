"""Learning from preferences: DPO and its relatives, KTO, ORPO, CPO, and reward models."""
