"""`localdelay relay`: lines from a descriptor, held until they are due, and sent to a broker.

framing   chunks of bytes into lines
lines     a line into a message, and what is wrong with it
records   a message into a line that can be read back
source    reading a descriptor, so that it can be stopped and nothing is lost
reading   from the source into the queue, as fast as that has room
saving    what could not be sent, into files
settings  what it is asked to do, how far it is, and what became of it
run       all of this together, and the signals that stop it
"""
