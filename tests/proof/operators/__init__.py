"""The declarations of the operators, a module each: CONTRACT, COST, COMPILATION."""
