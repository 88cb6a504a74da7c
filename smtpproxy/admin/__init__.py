"""The admin address: metrics, health and the live page. It reads snapshots only."""
