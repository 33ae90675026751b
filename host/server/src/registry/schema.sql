-- Tables of the registry, version 1. Times are milliseconds since 1970.
CREATE TABLE tenants (
    id            INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice: the engine and logs know a tenant by it
    name          TEXT    NOT NULL UNIQUE,
    weight        INTEGER NOT NULL,
    kv_blocks_max INTEGER,                           -- NULL: as many as there are
    requests_max  INTEGER,                           -- NULL: the server's default
    created_ms    INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id         TEXT    PRIMARY KEY,
    tenant_id  INTEGER NOT NULL REFERENCES tenants ON DELETE CASCADE,
    label      TEXT    NOT NULL,
    prefix     TEXT    NOT NULL,
    hash       BLOB    NOT NULL UNIQUE,              -- SHA-256 of the key; the key itself is nowhere
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT;
CREATE INDEX api_keys_of_tenant ON api_keys (tenant_id);

CREATE TABLE workflow_versions (
    tenant_id   INTEGER NOT NULL REFERENCES tenants ON DELETE CASCADE,
    workflow    TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    digest      TEXT    NOT NULL,
    bytes       INTEGER NOT NULL,
    description TEXT    NOT NULL,                    -- JSON, as the component describes itself
    created_ms  INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, workflow, version)
) STRICT;

-- The last row of a workflow says which version is active; the rows before it are what a roll back returns to.
CREATE TABLE activations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id  INTEGER NOT NULL,
    workflow   TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    FOREIGN KEY (tenant_id, workflow, version) REFERENCES workflow_versions ON DELETE CASCADE
) STRICT;
CREATE INDEX activations_of_workflow ON activations (tenant_id, workflow, id);

PRAGMA user_version = 1;
