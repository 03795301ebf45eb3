module example.org/csv-connector

go 1.21
