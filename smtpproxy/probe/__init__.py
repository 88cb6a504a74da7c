"""The probe: what a server offers, lacks and gets wrong, and the settings that follow from it."""
