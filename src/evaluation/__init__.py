"""How good a network is: metrics, the evaluation of a data set, the report by class."""
