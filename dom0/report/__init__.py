"""What a run looked like, counted: the models, how they are gathered, and how they are shown."""
