package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the schema up to date, as its owner. Any number of processes may call it at once.
func Migrate(ctx context.Context, ownerURL string) error {
	if err := migrate(ctx, ownerURL); err != nil {
		return mapError(ctx, fmt.Errorf("bring the database's schema up to date: %w", err))
	}
	return nil
}

func migrate(ctx context.Context, ownerURL string) error {
	cfg, err := pgx.ParseConfig(ownerURL)
	if err != nil {
		return fmt.Errorf("read the address of the database: %w", err)
	}
	cfg.ConnectTimeout = connectTimeout
	conn := sql.OpenDB(stdlib.GetConnector(*cfg))
	defer func() { _ = conn.Close() }()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, files, goose.WithSessionLocker(locker))
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// SetPasswords lets the roles carrel_control and carrel_system log in with passwords, as the owner.
func SetPasswords(ctx context.Context, ownerURL, controlPassword, systemPassword string) error {
	conn, err := pgx.Connect(ctx, ownerURL)
	if err != nil {
		return mapError(ctx, fmt.Errorf("connect as the owner: %w", err))
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, role := range []struct{ name, password string }{{"carrel_control", controlPassword}, {"carrel_system", systemPassword}} {
		// ALTER ROLE takes no parameters: PostgreSQL itself quotes the statement.
		var statement string
		if err := conn.QueryRow(ctx, "select format('alter role %I password %L', $1::text, $2::text)", role.name, role.password).Scan(&statement); err != nil {
			return mapError(ctx, fmt.Errorf("prepare the password of %s: %w", role.name, err))
		}
		if _, err := conn.Exec(ctx, statement); err != nil {
			return mapError(ctx, fmt.Errorf("set the password of %s: %w", role.name, err))
		}
	}
	return nil
}

// SchemaHash names the schema that Migrate makes, in hexadecimal digits.
func SchemaHash() string {
	sum := sha256.New()
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		panic(err) // the pattern is constant
	}
	for _, name := range files {
		data, err := migrations.ReadFile(name)
		if err != nil {
			panic(err) // it is embedded
		}
		sum.Write(data)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
