def dashboard(): return {}
