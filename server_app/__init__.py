"""The Flower ServerApp: settings, the round loop, recorder, checkpoints, engines and commands."""
