"""Other programs' calls: itk-elastix's, and elastix's and transformix's command lines."""
