"""What operators cost: the work in each kernel call, what a machine can do at most, and measured tables of both."""
