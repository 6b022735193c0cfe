"""How the embedded checkpoint is made: data drawn on the fly, stages of training, measures."""
