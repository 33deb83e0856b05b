"""Students and teachers: timm models, their weights, and the module that trains a student with its losses."""
