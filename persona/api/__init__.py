"""The public API, one file a topic. `import persona` gives its names and imports them when used."""
