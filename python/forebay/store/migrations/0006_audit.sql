-- What was done, by whom: one row for every change of a table that administrators change, written
-- by a trigger in the transaction of the change, and one for every look into prompt logs.
CREATE TABLE audit_log (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- key:<id of an admin key>, cli:<user>@<host>, gateway, or sql:<user of the database>.
    actor        text NOT NULL,
    -- <what>.<create, change, delete, ...>
    action       text NOT NULL,
    subject_kind text NOT NULL,
    subject_id   text NOT NULL,
    before       jsonb,
    after        jsonb,
    request_id   text,
    remote       text
);

CREATE INDEX audit_log_by_time ON audit_log (at);
CREATE INDEX audit_log_by_subject ON audit_log (subject_kind, subject_id, id);

-- The three settings hold for a connection while one actor has it from the pool.
CREATE FUNCTION audit_note(action text, kind text, id text, was jsonb, becomes jsonb)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO audit_log
        (actor, action, subject_kind, subject_id, before, after, request_id, remote)
    VALUES (
        coalesce(
            nullif(current_setting('forebay.actor', true), ''),
            CASE current_setting('application_name')
                WHEN 'forebay' THEN 'gateway' ELSE 'sql:' || session_user END
        ),
        $1, $2, $3, $4, $5,
        nullif(current_setting('forebay.request_id', true), ''),
        nullif(current_setting('forebay.remote', true), '')
    )
$$;

-- A row as it is shown: without digests and other bytes and without documents, and with exact
-- numbers as text, so that no reader makes floats of them.
CREATE FUNCTION audit_row(relation oid, fields jsonb) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_object_agg(f.key, CASE
        WHEN a.atttypid = 'numeric'::regtype
            THEN to_jsonb(trim_scale((f.value #>> '{}')::numeric)::text)
        ELSE f.value END)
    FROM jsonb_each(fields) AS f
    JOIN pg_attribute AS a ON a.attrelid = relation AND a.attname = f.key AND a.attnum > 0
    WHERE a.atttypid <> 'bytea'::regtype AND f.key <> 'document'
$$;

-- Arguments: what is changed, then <kind>=<column> for the subject, of which the first column that
-- is not null counts; a kind alone has one subject, without an id.
CREATE FUNCTION audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bookkeeping CONSTANT text[] := ARRAY['updated_at', 'version'];
    was     jsonb;
    becomes jsonb;
    fields  jsonb;
    verb    text := 'change';
    kind    text;
    id      text;
BEGIN
    IF TG_OP <> 'INSERT' THEN was := to_jsonb(OLD) - bookkeeping; END IF;
    IF TG_OP <> 'DELETE' THEN becomes := to_jsonb(NEW) - bookkeeping; END IF;
    IF was = becomes THEN
        RETURN NULL;
    ELSIF was IS NULL THEN
        verb := 'create';
    ELSIF becomes IS NULL THEN
        verb := 'delete';
    ELSIF was -> 'revoked_at' IS DISTINCT FROM becomes -> 'revoked_at' THEN
        verb := 'revoke';
    ELSIF was -> 'rotated_at' IS DISTINCT FROM becomes -> 'rotated_at' THEN
        verb := 'rotate';
    END IF;
    fields := coalesce(becomes, was);
    FOR i IN 1 .. TG_NARGS - 1 LOOP
        kind := split_part(TG_ARGV[i], '=', 1);
        id := fields ->> split_part(TG_ARGV[i], '=', 2);
        EXIT WHEN id IS NOT NULL;
    END LOOP;
    PERFORM audit_note(
        TG_ARGV[0] || '.' || verb, kind, coalesce(id, ''),
        audit_row(TG_RELID, was), audit_row(TG_RELID, becomes)
    );
    RETURN NULL;
END $$;

CREATE FUNCTION audit_attach(target regclass, VARIADIC arguments text[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON %s'
        ' FOR EACH ROW EXECUTE FUNCTION audit_change(%s)',
        target,
        (SELECT string_agg(quote_literal(argument), ', ' ORDER BY place)
            FROM unnest(arguments) WITH ORDINALITY AS given (argument, place))
    );
END $$;

SELECT audit_attach('accounts', 'account', 'account=id');
SELECT audit_attach('api_keys', 'key', 'key=id');
SELECT audit_attach('limits', 'limits', 'key=key_id', 'account=account', 'model=model');

DO $$
DECLARE
    target record;
BEGIN
    FOR target IN SELECT * FROM (VALUES
        ('prices', 'price', 'price=id'),
        ('account_billing', 'billing', 'account=account'),
        ('seller', 'seller', 'seller'),
        ('terms', 'term', 'account=account'),
        ('adjustments', 'adjustment', 'account=account'),
        ('invoices', 'invoice', 'invoice=number')
    ) AS given (name, what, subject) LOOP
        IF to_regclass(target.name) IS NOT NULL THEN
            PERFORM audit_attach(to_regclass(target.name), target.what, target.subject);
        END IF;
    END LOOP;
END $$;

-- Append-only. What is older than the moment that audit_forget names may go, and nothing else.
CREATE FUNCTION audit_keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.at < nullif(current_setting('forebay.audit_forget', true), '')::timestamptz THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'audit_log is append-only';
END $$;

CREATE TRIGGER audit_keep BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_keep();
CREATE TRIGGER audit_keep_all BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_keep();

-- Forgets what is older than `moment`, which lies at least 30 days back, and says so in the log.
CREATE FUNCTION audit_forget(moment timestamptz) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    gone bigint;
BEGIN
    IF moment > now() - interval '30 days' THEN
        RAISE EXCEPTION 'audit_log keeps at least 30 days';
    END IF;
    PERFORM set_config('forebay.audit_forget', moment::text, true);
    DELETE FROM audit_log WHERE at < moment;
    GET DIAGNOSTICS gone = ROW_COUNT;
    PERFORM set_config('forebay.audit_forget', '', true);
    IF gone > 0 THEN
        PERFORM audit_note(
            'audit.forget', 'audit', '', NULL,
            jsonb_build_object('older_than', moment, 'rows', gone)
        );
    END IF;
    RETURN gone;
END $$;
