"""What `import maejax` offers: create, load, save, train and evaluate models, on images of any kind."""
