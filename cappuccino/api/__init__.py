"""Planning, checking and running from Python, in few calls; `cappuccino` has their names."""
