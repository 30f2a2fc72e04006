-- Images are deleted, and nodes are told to remove their files.

-- +goose Up

-- Digests of which an image was deleted at some time. Nodes remove the file of one that nothing needs any more; and nothing that would need it
-- anew is made while no image has it.
create table deleted_images (
	digest     text primary key,
	deleted_at timestamptz not null
);
grant select, insert, update, delete on deleted_images to carrel_system;
grant select on deleted_images to carrel_control;

-- +goose StatementBegin
create function image_is_there() returns trigger language plpgsql as $$
begin
	-- Who deletes an image holds this lock alone: it sees those who came before it, and those who come after it see what it did.
	perform pg_advisory_xact_lock_shared(hashtextextended(new.image_digest, 7227273508));
	if exists (select from deleted_images d where d.digest = new.image_digest) and not exists (
		select from images i where i.digest = new.image_digest and i.state = 'ready' and i.org_id in (
			new.org_id, (select c.system_org from cluster c),
			-- A box that is prepared belongs to the system organisation, its template to another.
			(select t.org_id from templates t where t.id = to_jsonb(new)->>'template_id')))
	then
		raise exception 'image % was deleted', new.image_digest using errcode = 'check_violation', constraint = 'image_is_there';
	end if;
	return new;
end
$$;
-- +goose StatementEnd
create trigger image_is_there before insert on boxes for each row execute function image_is_there();
create trigger image_is_there before insert on templates for each row execute function image_is_there();

-- Whether a file is needed is asked by its digest.
create index boxes_image on boxes (image_digest) where deleted_at is null;
create index templates_image on templates (image_digest);
