"""DICOM files: their headers, what ties them to a patient and a scan, and new ones that refer to others."""
