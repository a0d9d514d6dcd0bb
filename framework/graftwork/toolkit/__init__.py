"""Parts that several plugins share; the framework itself never imports them."""
