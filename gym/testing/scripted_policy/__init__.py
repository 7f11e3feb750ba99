"""The scripted policy of the model server: directives, solvers, tokenizer. Pure functions."""
