"""Find level sets of expensive functions with few evaluations."""
