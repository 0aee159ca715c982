-- The two roles of docs/start/self-hosted.md: one sets up, once; the other one runs, and owns nothing.
CREATE ROLE waltrail LOGIN REPLICATION PASSWORD 'waltrail';
CREATE ROLE waltrail_setup LOGIN REPLICATION PASSWORD 'waltrail_setup';
-- Only an owner can publish a table.
GRANT app TO waltrail_setup;
-- For the publication and the schema waltrail, and for history tables that do not exist yet.
DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO waltrail_setup', current_database()); END $$;
GRANT CREATE ON SCHEMA public TO waltrail_setup;
