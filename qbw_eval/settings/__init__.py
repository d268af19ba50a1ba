"""What an experiment file may say: frozen, checked settings, a module per section."""
