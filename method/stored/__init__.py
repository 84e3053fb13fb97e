"""What files of plans and of routers hold."""
