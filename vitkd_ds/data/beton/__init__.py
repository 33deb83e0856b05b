"""beton"""
