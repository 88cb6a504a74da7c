"""The HTTP side: metrics, health and the live page. It reads snapshots only."""
