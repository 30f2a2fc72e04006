// Package db is what sqlc makes of internal/store/queries: one typed function for each statement. Only internal/store
// uses it. Do not edit the other files: change the queries and run scripts/generate.sh.
package db
