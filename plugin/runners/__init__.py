"""Who keeps the processes of a deployment alive."""
