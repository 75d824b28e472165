"""`domzero boot`: one native kernel, its console on standard input and output, its end in the exit status."""
