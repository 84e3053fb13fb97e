"""What files of plans and routers hold, and how a changed byte is noticed."""
