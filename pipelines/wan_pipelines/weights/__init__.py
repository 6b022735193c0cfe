"""Weight files of every layout people have: what they hold, how they are read, fetched, checked and converted."""
